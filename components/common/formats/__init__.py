"""The files that one stage leaves for another: names, schemas, versions, writers and readers."""
