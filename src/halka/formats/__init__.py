"""Files of others: reading and writing them so that their tools take ours and we take theirs."""
