"""Studies what a trained supernet knows about its candidates, and which gradient estimators find this out."""
