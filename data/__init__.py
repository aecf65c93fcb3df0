"""Lists and tokenises images, stores them as shards, and feeds training with them."""
