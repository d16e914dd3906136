"""The meaning of every finding, metric and error, used by verdict, reports and docs."""
