"""What all tools that measure share.

rows.py is the command of a tool that measures row after row, and table.py its tables. runs.py runs a recipe as a user
does, and a module in a process of its own. lossless_formats.py has image formats to compare with.
"""
