"""Parts of a configuration."""
