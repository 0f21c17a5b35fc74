"""The stages of a run: each builds what training.fit drives, from models, views and a configuration."""
