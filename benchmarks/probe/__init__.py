"""The probe model: SmolLM2-135M taught to use a 16K context, so that the accuracy of sparse attention can be seen."""
