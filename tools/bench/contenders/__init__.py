"""The programs that fetchfleet is measured against."""
