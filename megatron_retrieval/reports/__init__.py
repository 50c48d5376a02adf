"""What a run tells its reader: run records, tables, highlighted passages."""
