
sequence_of_sequences_empty