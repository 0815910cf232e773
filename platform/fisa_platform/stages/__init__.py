"""The table of stages: `stage:` of a spec is a key, `config:` is decoded into that stage's dataclass."""

from fisa_platform.job import Stage, StageContext, StageResult
from fisa_platform.stages import pipeline, propose, shard

__all__ = ["STAGES", "Stage", "StageContext", "StageResult"]

STAGES = {
    "shard": Stage(shard.ShardConfig, shard.run),
    "propose": Stage(propose.ProposeConfig, propose.run),
    "pipeline": Stage(pipeline.PipelineConfig, pipeline.run, uses_ray=False, versioned=False),
}
