"""Which examples each step of each process sees, and how they are read: from memory, mapped, decoded or streamed."""
