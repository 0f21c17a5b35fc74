"""Views: augmentation, what is derived of views, and the sources that give a step its images or kept outputs."""
