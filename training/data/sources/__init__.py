"""Where datasets come from, and how they are opened: by name, from files and folders, or from a URL."""
