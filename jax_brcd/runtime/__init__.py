"""What everything stands on: devices, compiler options, files, errors, registries."""
