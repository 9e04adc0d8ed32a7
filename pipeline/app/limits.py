"""What one request to the page may ask for; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.config import require, require_range


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    images: int = 16
    """most images of a request, 1 to 256"""
    queue: int = 8
    """requests that wait; further ones are refused"""
    upload_mb: int = 8
    """megabytes of an uploaded picture"""
    upload_pixels: int = 24_000_000
    """pixels of an uploaded picture"""

    def __post_init__(self) -> None:
        require(1 <= self.images <= 256, "images", self.images, "from 1 to 256")
        require_range(self, "above 0", "queue", "upload_mb", "upload_pixels")
