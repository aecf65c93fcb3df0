"""The command `enat`, for people who do not train: it draws and scores images without a configuration."""
