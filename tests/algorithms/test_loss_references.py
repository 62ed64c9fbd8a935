"""Score losses against those of sentence-transformers, list by list; it averages over a batch, we over each list."""

from __future__ import annotations

import math

import pytest
import torch

from compressor.algorithms.ranking_losses import RANKING_LOSSES


@pytest.fixture(scope="module")
def reference():
    """Return a function: a loss's class name, scores, targets, options -> its value and gradient."""
    from sentence_transformers.cross_encoder import CrossEncoder, losses

    class Scores(CrossEncoder):
        """A cross-encoder whose texts are numbers of scores."""

        num_labels, device = 1, torch.device("cpu")

        def __init__(self, scores):
            torch.nn.Module.__init__(self)
            self.scores = torch.nn.Parameter(scores)

        def preprocess(self, pairs, **_):
            return {"index": torch.tensor([int(document) for _, document in pairs])}

        def forward(self, tokens):
            return {"scores": self.scores[tokens["index"]][:, None]}

    def value(name, scores, targets, columns="lists", schemes=None, **options):
        model = Scores(scores.float().clone())
        if schemes:
            options["weighting_scheme"] = getattr(losses, schemes)()
        loss = getattr(losses, name)(model, **options)
        documents = [str(index) for index in range(len(scores))]
        inputs = {
            "lists": [["query"], [documents]],
            "pairs": [["query"] * len(scores), documents],
            "columns": [["query"], *([each] for each in documents)],
        }[columns]
        found = loss(inputs, targets if columns == "pairs" else [targets])
        return found.detach(), torch.autograd.grad(found, model.scores)[0]

    return value


CASES = [
    ("mse", {}, "MSELoss", {"columns": "pairs"}, 1.0),
    ("margin_mse", {"pairs": "first"}, "MarginMSELoss", {"columns": "columns"}, 1.0),
    ("ranknet", {}, "RankNetLoss", {"reduction_log": "natural"}, 1.0),
    ("ranknet", {"sigma": 2.0}, "RankNetLoss", {"sigma": 2.0}, 1 / math.log(2)),
    ("adr_mse", {"sigma": 0.5}, "ADRMSELoss", {"alpha": 0.5}, 1.0),
    ("list_mle", {}, "ListMLELoss", {"respect_input_order": False}, 9.0),  # it adds up, we average
    ("plist_mle", {}, "PListMLELoss", {"respect_input_order": False}, 1.0),
    ("bce_labels", {}, "BinaryCrossEntropyLoss", {"columns": "pairs"}, 1.0),
    *(
        ("lambda_labels", {"scheme": scheme, "k": k}, "LambdaLoss", {"schemes": name, "k": k}, 1.0)
        for scheme, name in (
            ("ndcg_loss2", "NDCGLoss2Scheme"),
            ("ndcg_loss2pp", "NDCGLoss2PPScheme"),
            ("lambdarank", "LambdaRankScheme"),
        )
        for k in (None, 3)
    ),
]


@pytest.mark.parametrize(("name", "options", "theirs", "their_options", "factor"), CASES)
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_are_equal(name, options, theirs, their_options, factor, seed, reference):
    torch.manual_seed(seed)
    scores, targets = 3 * torch.randn(9), 3 * torch.randn(9)
    if name == "lambda_labels":
        targets = torch.randint(0, 4, (9,)).float()
    if name == "bce_labels":
        targets = torch.rand(9)
    expected, slopes = reference(theirs, scores, targets, **their_options)
    own = scores[None].clone().requires_grad_()
    found = factor * RANKING_LOSSES[name].function(own, targets[None], torch.ones(1, 9, dtype=torch.bool), **options)
    torch.testing.assert_close(found[0].detach(), expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), own)[0][0], slopes)


def test_ndcg_loss1_is_equal_without_each_item_against_itself(reference):
    torch.manual_seed(4)
    scores, targets = torch.randn(6), torch.randint(0, 4, (6,)).float()
    expected, slopes = reference("LambdaLoss", scores, targets, schemes="NDCGLoss1Scheme")
    places = scores.argsort(descending=True)
    gains = 2 ** targets[places] - 1
    discounts = torch.log2(torch.arange(2.0, 8))
    best = ((2 ** targets.sort(descending=True).values - 1) / discounts).sum()
    itself = (gains / best / discounts).sum()  # times log2(2), the loss of a pair of equal scores
    own = scores[None].clone().requires_grad_()
    mask = torch.ones(1, 6, dtype=torch.bool)
    found = RANKING_LOSSES["lambda_labels"].function(own, targets[None], mask, scheme="ndcg_loss1")
    torch.testing.assert_close(found[0].detach() * 30, expected * 36 - itself)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), own)[0][0] * 30, slopes * 36)


def test_listwise_kl_is_list_net_less_the_teachers_entropy(reference):
    torch.manual_seed(5)
    scores, targets = torch.randn(9), torch.randn(9)
    expected, slopes = reference("ListNetLoss", scores, targets)
    own = scores[None].clone().requires_grad_()
    found = RANKING_LOSSES["listwise_kl"].function(own, targets[None], torch.ones(1, 9, dtype=torch.bool))
    entropy = torch.distributions.Categorical(logits=targets).entropy()
    torch.testing.assert_close(found[0].detach() + entropy, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), own)[0][0], slopes)
