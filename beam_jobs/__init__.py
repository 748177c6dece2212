"""The Apache Beam job that turns raw logs into sharded TFRecords."""
