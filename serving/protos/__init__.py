"""Messages of the client: ``wire.proto`` and what ``make protos`` generates from it."""
