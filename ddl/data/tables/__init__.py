"""Tables: CSV, JSONL, Parquet, Arrow and Hugging Face files are converted once into rows of numbers and a schema."""
