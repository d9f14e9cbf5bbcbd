"""Says how strong a wine is from what else a chemist finds in it, by an elastic net, and tells MLflow.

The data are the 178 wines of the UCI Machine Learning Repository's Wine data set (doi:10.24432/C5PC7J, CC BY 4.0), which come
with scikit-learn.
"""

import argparse

import mlflow
from mlflow.models import infer_signature
from sklearn.datasets import load_wine
from sklearn.linear_model import ElasticNet
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

TARGET = "alcohol"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--alpha", type=float, required=True)
    parser.add_argument("--l1-ratio", type=float, required=True)
    arguments, beyond = parser.parse_known_args()
    if beyond:
        print(f"not for me: {beyond}")

    wines = load_wine(as_frame=True).data
    train_x, test_x, train_y, test_y = train_test_split(wines.drop(columns=TARGET), wines[TARGET], random_state=0)

    # In a project's run, MLFLOW_RUN_ID is set: this goes on with that run, whose parameters are there already.
    with mlflow.start_run():
        model = make_pipeline(StandardScaler(), ElasticNet(alpha=arguments.alpha, l1_ratio=arguments.l1_ratio, random_state=0))
        model.fit(train_x, train_y)
        predicted = model.predict(test_x)
        metrics = {
            "rmse": root_mean_squared_error(test_y, predicted),
            "mae": mean_absolute_error(test_y, predicted),
            "r2": r2_score(test_y, predicted),
        }
        mlflow.log_metrics(metrics)
        signature = infer_signature(test_x, predicted)
        mlflow.sklearn.log_model(model, name="model", signature=signature)
        print(f"alpha={arguments.alpha} l1_ratio={arguments.l1_ratio}: " + ", ".join(f"{name}={value:.3f}" for name, value in metrics.items()))


if __name__ == "__main__":
    main()
