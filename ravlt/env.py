print("env report later")
