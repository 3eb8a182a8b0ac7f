"""What every other room may use: settings, files, signals, processes, memory, text. Imports no other room."""
