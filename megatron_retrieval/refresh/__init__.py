"""The index follows the encoder while it trains."""
