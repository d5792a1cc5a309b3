
sequence_empty