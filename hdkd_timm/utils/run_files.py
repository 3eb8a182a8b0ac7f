"""Names of the files that the folder of a run holds."""

CONFIG_FILE = 'config.yaml'
IMAGES_FILE = 'images.csv'
STATE_FILE = 'last.pth'
SUMMARY_FILE = 'summary.csv'
METRICS_FILE = 'metrics.json'
PREDICTIONS_FILE = 'predictions.csv'
