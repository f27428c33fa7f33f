"""Networks as feature pyramids: timm's by name, and your own."""
