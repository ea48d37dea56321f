"""The `pixtral` command."""
