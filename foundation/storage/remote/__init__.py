"""Files in object stores and on web servers, by way of fsspec: listed, read in ranges, and kept in a bounded cache."""
