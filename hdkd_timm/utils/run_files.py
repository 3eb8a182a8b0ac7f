"""Names of the files in the directory of a run."""

CONFIG_FILE = 'config.yaml'
IMAGES_FILE = 'images.csv'
INPUTS_FILE = 'inputs.json'
STATE_FILE = 'last.pth'
FAST_FILE = 'fast.json'
SUMMARY_FILE = 'summary.csv'
METRICS_FILE = 'metrics.json'
PREDICTIONS_FILE = 'predictions.csv'
CALIBRATION_FILE = 'calibration.json'  # next to the config.json of a model
TEACHER_LOGITS_FILE = 'teacher_logits.json'
