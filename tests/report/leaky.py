"""Models and processors that leak, each on one way, for tests of the leak checks (a module of its own: fresh processes open them)."""
import numpy as np
import pandas as pd
from qlib.contrib.model.linear import LinearModel
from qlib.data.dataset.processor import Processor
from qlib.model.base import Model


class WholeSegment(LinearModel):
    """Scores are z-scores over all days and stocks of the segment."""

    def predict(self, dataset, segment="test"):
        scores = super().predict(dataset, segment)
        return (scores - scores.mean()) / scores.std()


class Restless(LinearModel):
    """Says something else each time."""

    def predict(self, dataset, segment="test"):
        scores = super().predict(dataset, segment)
        return scores + np.random.default_rng().standard_normal(len(scores))


class Deaf(LinearModel):
    """Scores the test of the configuration, whatever is asked for."""

    def predict(self, dataset, segment="test"):
        return super().predict(dataset, slice("2016-06-01", "2016-12-30"))


class Peeking(Model):
    """Reads the labels of the segment that it scores."""

    def fit(self, dataset, reweighter=None):
        return self

    def predict(self, dataset, segment="test"):
        return dataset.prepare(segment, col_set="label", data_key="infer").iloc[:, 0]


class Remembering(Peeking):
    """Scores by the true return that it reads past the dataset."""

    def predict(self, dataset, segment="test"):
        from qlib.data import D

        index = dataset.prepare(segment, col_set="feature").index
        codes = sorted(set(index.get_level_values("instrument")))
        found = D.features(codes, ["Ref($close,-6)/Ref($close,-1)-1"], "2016-06-01", "2016-12-30")
        return found.iloc[:, 0].swaplevel().reindex(index)


class LabelInside(Processor):
    """Puts the label into a feature, behind the back of whoever reads expressions."""

    fields_group = "feature"

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        df[("feature", "KMID")] = df[("label", "LABEL0")].fillna(0.0)
        return df


class WholeSpan(Processor):
    """Normalises features by the mean and standard deviation of all dates that are loaded."""

    fields_group = "feature"

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        features = df["feature"]
        df[[("feature", name) for name in features]] = ((features - features.mean()) / features.std()).to_numpy()
        return df
