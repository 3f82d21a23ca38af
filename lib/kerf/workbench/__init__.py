"""What a person looks at: the report, its charts and the executed notebooks as pages."""
