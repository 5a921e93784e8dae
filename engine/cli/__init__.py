"""The `danqing` command."""
