"""Settings: options as dataclass fields, the configuration made of them, presets."""
