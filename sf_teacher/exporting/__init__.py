"""The plain model in a folder: normalised, written, reloaded in a clean process, verified. Nothing of branches."""
