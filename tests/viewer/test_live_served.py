"""The page of the real server: what is seen is what the engine decodes."""

from __future__ import annotations

import pytest

from tests.serve.models import KINDS, loaded, save_tiny, tokenizer
from tests.serve.running import Served
from tests.viewer.asking import STATE, wait_for_end
from unmask import SamplingParams, generate
from unmask.types import Example, Message


@pytest.mark.parametrize("kind", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def test_the_page_shows_what_the_engine_decodes(kind, browser, tmp_path) -> None:
    folder = save_tiny(tmp_path / kind, kind)
    model, question = loaded(folder), "add 9+4, please?"
    with Served(folder, "max_new_tokens=40", "confidence_threshold=0.3", "seed=5") as served:
        page = browser.show(f"http://{served._address()}/")
        page.get_by_label("Compare: static beside dynamic").check()
        page.get_by_label("Your question").fill(question)
        page.get_by_role("button", name="Ask").click()
        wait_for_end(page)
        panels = page.evaluate(STATE)["panels"]
        page.context.close()
        served.assert_idle()
    prompt = tokenizer().prompt_ids(Example(id="0", messages=(Message(role="user", content=question),)))
    base = SamplingParams(max_new_tokens=40, seed=5, stop_token_ids=tokenizer().stop_ids(model.spec.eos_token_ids))
    for panel, strategy in zip(panels, ("low_confidence_static", "low_confidence_dynamic"), strict=True):
        params = base.model_copy(update={"remasking_strategy": strategy, "confidence_threshold": 0.3})
        (want,) = generate(model, [prompt], params)
        assert panel["numSteps"] == want.num_forwards
        assert panel["text"] == "".join(tokenizer().pieces(want.response_ids))
        assert panel["tokensPerForward"] == pytest.approx(want.tokens_per_forward)
