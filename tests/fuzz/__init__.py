"""Whatever arrives on the wire or lies in a store: it is taken or refused, and nobody falls over it."""
