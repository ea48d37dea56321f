"""Reading and writing weights in the Hugging Face and the Mistral layout."""
