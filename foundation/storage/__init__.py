"""Files that survive a crash: durable writes, JSON, safetensors."""
