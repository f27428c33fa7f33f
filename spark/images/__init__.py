"""Images wherever they lie: where one is (`source`, `files`, `shards`, `arrow`), and what its bytes show (`decode`)."""
