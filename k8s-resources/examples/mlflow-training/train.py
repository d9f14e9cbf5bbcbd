import mlflow

with mlflow.start_run():
    mlflow.log_param("learning_rate", 0.01)
    for step in range(3):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
