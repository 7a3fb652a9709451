"""What a trained supernet knows of its candidates, and which gradient estimators find it out."""
