"""Programs that use trained models: search, reading, mining, planning, importing embeddings."""
