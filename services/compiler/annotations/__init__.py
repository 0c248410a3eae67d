"""The registry of annotations: one small entry each, one module a family. Text in, typed `IngressSettings` and problems out.

An entry says what the annotation is called, how its value is read, what an invalid value does, how risky it is, and whether its effect is
data (rows, live without a reload) or policy (nginx text). Its effect is wherever the field of `IngressSettings` that it sets is read.
"""
