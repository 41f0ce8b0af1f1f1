"""Records in, batches out: readers, chat templates, collation and the stream that resuming needs one integer for."""
