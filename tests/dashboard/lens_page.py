"""A Streamlit page with nothing but the token lens, for the browser tests."""

import fake_playground
import fake_traces
import streamlit as st

from dashboard.token_lens import answer_lens, token_lens

st.title("Lens")
made = fake_traces.rollout("r-p8", 120, 1 if st.query_params.get("hostile") else 0)
if st.query_params.get("window"):
    made = made.model_copy(update={"trained_start": 3, "id": "window"})
wanted = int(st.query_params.get("tokens", 0))
if wanted:
    made = made.model_copy(update={"trace": fake_traces.trace(wanted), "id": f"long-{wanted}"})
if st.query_params.get("answer"):
    answer_lens(fake_playground.answer("q-succeeded", 1), "reverse_kl", first_difference=3)
    st.stop()
metric, token = token_lens(made, "reverse_kl", None)
st.markdown(f"chosen {metric} {token}")
