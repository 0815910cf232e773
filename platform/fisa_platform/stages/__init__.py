"""The table of stages: `stage:` of a spec is a key, `config:` is decoded into that stage's dataclass."""

from fisa_platform.job import Stage, StageContext, StageResult
from fisa_platform.stages import (
    evaluate,
    evaluate_referring,
    experiment,
    label,
    pipeline,
    pretrain,
    propose,
    report,
    serve,
    shard,
    train,
)

__all__ = ["STAGES", "Stage", "StageContext", "StageResult"]

STAGES = {
    "shard": Stage(shard.ShardConfig, shard.run),
    "propose": Stage(propose.ProposeConfig, propose.run),
    "train": Stage(train.TrainConfig, train.run),
    "evaluate": Stage(evaluate.EvaluateConfig, evaluate.run),
    "evaluate_referring": Stage(evaluate_referring.EvaluateReferringConfig, evaluate_referring.run),
    "label": Stage(label.LabelConfig, label.run),
    "serve": Stage(serve.ServeConfig, serve.run, versioned=False),
    "report": Stage(report.ReportConfig, report.run, uses_ray=False),
    "pretrain": Stage(pretrain.PretrainConfig, pretrain.run),
    "experiment": Stage(experiment.ExperimentConfig, experiment.run, uses_ray=False, versioned=False),
    "pipeline": Stage(pipeline.PipelineConfig, pipeline.run, uses_ray=False, versioned=False),
}
