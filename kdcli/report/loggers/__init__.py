"""The table of loggers, which send a run's numbers to TensorBoard, MLflow and the like; torch-free."""

from __future__ import annotations

from kdcli.spec.tables import Target

LOGGERS: dict[str, Target] = {
    "mlflow": Target("kdcli.report.loggers.mlflow:MlflowLogger"),
    "tensorboard": Target("kdcli.report.loggers.tensorboard:TensorBoardLogger"),
    "wandb": Target("kdcli.report.loggers.wandb:WandbLogger"),
}
"""What `trainer.loggers` may name, beside `package.module:Logger` of a package that --plugin allows."""
