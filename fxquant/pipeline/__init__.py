"""What flows between passes and how passes are strung together."""
