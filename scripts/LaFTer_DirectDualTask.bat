@echo off
rem Direct dual task: the class and the emotion distribution together, on true labels, without the text phase.
rem It needs no text tower. Staged prompts: --multi_layer_prompt.
rem It sets --direct_dualtask (which takes the true labels), --scheduler none (a constant learning rate) and
rem --resume auto.
rem     scripts\LaFTer_DirectDualTask.bat [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
rem     scripts\LaFTer_DirectDualTask.bat emotion6 --root DATA --epochs 20
rem     scripts\LaFTer_DirectDualTask.bat emotion6 --backbone weights/vitb16_image_int8.pt INPUT.SIZE 112
rem Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
rem relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
rem end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
setlocal
call "%~dp0setup_env.bat"
if %ERRORLEVEL% neq 0 exit /b 1
set DATASET=emotion6
set "FIRST=%~1"
if defined FIRST if not "%FIRST:~0,1%"=="-" set DATASET=
call "%PY%" "%PROJECT%\LaFTer.py" --resume auto --direct_dualtask --scheduler none --dataset-config-file %DATASET% %*
exit /b %ERRORLEVEL%
