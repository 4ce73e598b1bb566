"""MAW in Hugging Face encoders."""
