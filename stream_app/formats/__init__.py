"""Mappings from the columns of public logs to the event contract, one TOML file each."""
